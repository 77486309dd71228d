from common.download.command import main
from common.flags import run

if __name__ == "__main__":
    run(main)
