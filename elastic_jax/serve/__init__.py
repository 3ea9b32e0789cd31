"""A model behind HTTP, in the protocol of OpenAI. Needs the extra `serve`."""
