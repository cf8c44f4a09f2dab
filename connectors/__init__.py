"""What an integration can do, and how to ask it: definitions, requests, and the one door out."""
