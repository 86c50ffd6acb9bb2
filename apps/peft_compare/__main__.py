"""`python -m peft_compare`, the same as `peft-compare`."""

from peft_compare.command import main

if __name__ == "__main__":
    main()
