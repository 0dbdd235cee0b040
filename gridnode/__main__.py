"""``python -P -m gridnode``: the command line."""

from gridnode.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
