"""nsr: from photographs to a neural surface, fast.

Importing nsr loads no native code and no torch; every subpackage is imported by name when it is needed.
"""

__version__ = "0.1.0"
