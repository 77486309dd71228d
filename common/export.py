"""The command `python -m common.export`; its code is in `integrations/export/`."""

from common.flags import run
from integrations.export import main

if __name__ == "__main__":
    run(main)
