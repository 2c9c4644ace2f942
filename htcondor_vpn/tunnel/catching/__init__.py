"""What catches the inner namespace's connections, datagrams, questions and echo requests, and holds its connects."""
