"""Who may come in: invitations, sessions, the owner's password."""
