"""The whole path on simulated patients, with a picture."""
