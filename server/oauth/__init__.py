"""Accounts that are connected by OAuth 2: consent, renewal and revocation. `connectors.oauth` builds what is asked."""
