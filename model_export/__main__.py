"""The entry point of `python -m model_export train | evaluate | export | half | adapt`."""

from model_export.cli import main

if __name__ == "__main__":
    main()
