"""Downloads of models, when the user asks. reach.py says where a request may go, fetch.py brings one file, running.py
keeps them all; sources.py, civitai.py and huggingface.py know what a text means. Imports no torch."""
