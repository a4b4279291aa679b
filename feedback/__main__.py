"""`python -m feedback`: a place where people judge what models wrote."""

import sys

from feedback import command_line

if __name__ == "__main__":
    sys.exit(command_line.main(sys.argv[1:]))
