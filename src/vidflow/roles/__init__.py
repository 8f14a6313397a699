"""One long-running process per role. A role joins the decisions of the domain with the outside world."""
