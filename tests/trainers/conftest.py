"""Makes the tiny training set-up importable for these tests and for their subprocesses."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
