"""python -m torch_tfckpt: the same as tfckpt."""

import sys

from torch_tfckpt.cli import main

sys.exit(main())
