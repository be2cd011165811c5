"""python -m torch_tfckpt: the same as tfckpt."""

import sys

from torch_tfckpt.cli.main import main

sys.exit(main())
