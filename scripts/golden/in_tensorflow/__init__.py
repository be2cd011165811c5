"""The part of scripts/golden that runs in the TensorFlow process: it trains models, writes graphs and judges files."""
