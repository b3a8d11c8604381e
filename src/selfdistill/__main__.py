"""``python -m selfdistill``: the same as the command ``selfdistill``."""

from selfdistill.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
