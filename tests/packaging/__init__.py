"""What an installation holds, and that its commands work from anywhere."""
