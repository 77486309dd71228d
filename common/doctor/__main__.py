"""python -m common.doctor"""

from common.doctor.command import main
from common.entry import run

if __name__ == "__main__":
    run(main)
