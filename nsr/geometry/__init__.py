"""Cameras, poses, visual hulls, meshes: geometry that knows nothing about networks. Import the modules by name."""
