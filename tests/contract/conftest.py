"""Makes ``family_cases`` importable for the contract tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
