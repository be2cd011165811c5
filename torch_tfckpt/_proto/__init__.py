"""Generated from protos/ by scripts/gen_protos.py. Never edited by hand."""
