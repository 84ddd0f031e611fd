#!/usr/bin/env python3
"""The surface of one scan in the colours of another, by the name that IDR gave this program: `nsr transfer` (see its --help).

scripts/eval_disentanglement.py --geometry_id 65 --appearance_id 106 [--exp NAME] [--conf CONF]
"""

import sys

from nsr.apps.main import main

sys.exit(main(["transfer", *sys.argv[1:]]))
