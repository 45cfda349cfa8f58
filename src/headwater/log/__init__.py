"""The embedded durable log: one directory, many processes, no server.

Storage, from the outside in: `store` is what others use. `journal` commits, `disk` syncs, `reader` reads,
`catalog` knows the topics, `retention` and `cleaner` give space back, `recovery` rebuilds after a power cut,
`check` and `survey` deal with damage. Below them `segments` and `frames` know the bytes of the files,
`control` the words shared between processes, `lock` who may change them, `directory` where it all lives.

    ctl              words shared by all processes, mapped; told anew from the segments when it is lost
    lock, cleaning   locked by who writes, and by who cleans
    catalog          topics, their streams, where each begins
    0000000001.log   segments of the journal; 0000000001-0000000007.log holds what was left of seven
"""
