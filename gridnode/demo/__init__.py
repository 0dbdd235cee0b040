"""``gridnode demo``: a throw-away grid of three daemons that finds road users in films while a node is killed."""
