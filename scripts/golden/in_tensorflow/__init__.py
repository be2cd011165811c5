"""The part of scripts/golden that runs in the TensorFlow process: it trains models and writes graphs."""
