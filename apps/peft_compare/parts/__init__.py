"""What pages are put together from: each file draws one thing, as HTML, from plain data."""
