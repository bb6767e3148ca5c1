"""`python -m w2vbert`, and the command `w2vbert`."""

import sys


def main() -> int:
    """The command line; Ctrl-C while it is being loaded ends it like Ctrl-C later."""
    try:
        from w2vbert import cli
        from w2vbert.files import use_utf8

        use_utf8()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
