"""`python -m infobatch` is the `infobatch` command, as `torchrun -m infobatch` needs it."""

if __name__ == "__main__":
    from infobatch.lab.cli import main

    main()
