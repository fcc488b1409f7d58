"""The Ray executor. Nothing outside this folder imports Ray, and nothing imports this folder unless asked to.

``pool``     the driver's side: one streaming execution that any number of jobs share
``connect``  reaching or starting a cluster, and whether it can hold the pool
``foreman``  an actor beside the driver: which segment is next, what became of each, who was busy
``feed``     the Ray Data source that hands out the foreman's tickets
``worker``   what runs elsewhere: load as tasks, swap as actors, write as tasks
"""
