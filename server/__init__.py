"""Who may call what, who must agree, what is written down."""
