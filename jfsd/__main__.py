"""`python -m jfsd`: how a server starts its own program again, wherever that is installed."""

import sys

from jfsd.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
