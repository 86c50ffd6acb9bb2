"""The app: compare adapters in a browser."""
