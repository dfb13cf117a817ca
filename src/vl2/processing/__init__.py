"""Pictures and messages to model inputs."""
