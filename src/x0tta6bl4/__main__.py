"""`python -m x0tta6bl4`: the command line."""

import sys


def main() -> int:
    """Run the command line; 70 (EX_SOFTWARE) if this copy comes without one."""
    try:
        from x0tta6bl4.app.cli import services

        if services.is_plain(sys.argv[1:]):
            services.main(sys.argv[1:])
        from x0tta6bl4.app.cli.main import main as cli
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("x0tta6bl4."):
            raise
        print(
            f"x0: X0-BOOT-013: this copy has no {error.name}. use a complete clone or wheel",
            file=sys.stderr,
        )
        return 70
    cli()
    return 0


if __name__ == "__main__":
    sys.exit(main())
