"""`stillmotion serve`: prediction over HTTP, and one page for people. No torch where an exported file is served."""
