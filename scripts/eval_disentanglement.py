#!/usr/bin/env python3
"""The surface of one scan in the colours of another, by the name that IDR gave this program: `nsr transfer` (see its --help).

scripts/eval_disentanglement.py --geometry_id 65 --appearance_id 106 [--exp NAME] [--conf CONF]
"""

import sys

try:
    from nsr.apps.main import main
except ImportError as error:
    print(
        f"eval_disentanglement.py: {error}; run it with a Python that has nsr: .venv/bin/python after 'make setup'",
        file=sys.stderr,
    )
    sys.exit(6)

sys.exit(main(["transfer", *sys.argv[1:]]))
