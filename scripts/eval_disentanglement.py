#!/usr/bin/env python3
"""The surface of one scan in the colours of another, by the name that IDR gave this program: `nsr transfer` (see its --help).

scripts/eval_disentanglement.py --geometry_id 65 --appearance_id 106 [--exp NAME] [--conf CONF]
"""

import os
import shutil
import subprocess
import sys


def installed_nsr():
    """The nsr command of this checkout's .venv, else the one on the PATH; None where there is neither."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    own = os.path.join(root, ".venv", *(("Scripts", "nsr.exe") if os.name == "nt" else ("bin", "nsr")))
    return own if os.access(own, os.X_OK) else shutil.which("nsr")


def main():
    arguments = ["transfer", *sys.argv[1:]]
    try:
        from nsr.apps.main import main as nsr
    except ImportError as error:  # the python3 of the first line is not the one that nsr was installed for
        command = installed_nsr()
        if command is None:
            print(f"eval_disentanglement.py: {error}; nsr is not installed; run 'make setup' first", file=sys.stderr)
            return 6
        if os.name != "nt":
            os.execv(command, [command, *arguments])
        return subprocess.call([command, *arguments])  # there execv would not wait for its end
    return nsr(arguments)


if __name__ == "__main__":
    sys.exit(main())
