"""Images for jobs: definitions, the store that holds them, and how a job is started in one (docs/containers.md).

``definition.catalogue`` reads containers/*.def; ``making.fetch`` builds or pulls an image into a ``store.Store``: under
a lock and another name, verified and then renamed; ``launch.launch_of`` says how a job of a role is started.
"""
