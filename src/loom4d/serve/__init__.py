"""The web app: `loom4d serve`. The server holds no networks; children forked from a nursery look at uploads and run."""
