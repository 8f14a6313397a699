"""One process each: a role joins the decisions of the domain with the outside world."""
