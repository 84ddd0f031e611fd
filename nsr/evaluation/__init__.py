"""How good a result is: meshes, pictures, cameras; and the files that say so. Import the modules by name."""
