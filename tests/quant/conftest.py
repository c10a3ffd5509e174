"""Lets the tests of quantisation share `small_networks`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
