"""From files to a `Scene`, and from a `Scene` to batches of pixels. Start at `nsr.datasets.detect.load_scene`."""
