"""Every bound and every timeout, each with its reason. Nothing here is read from the environment.

A number that a user may change is the default of a `Config` field of the same name; the rest are constants.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- what we accept from a peer (docs/parser.md) -------------------------------------------------------------------
HEAD_MAX_BYTES: Final = 65_534  # offsets in the parser are u16; curl allows 300 KB in all, Node 16 KiB, Go 10 MB
FIELDS_MAX: Final = 256  # http.client 100, aiohttp 128
INTERIM_MAX: Final = 16  # 1xx answers a request; every client measured takes thousands, nobody needs more than 3
ERROR_BODY_MAX_BYTES: Final = 256 * KIB  # of an answer's body kept for error XML; S3's errors are below 2 KiB
ANSWER_DRAIN_MAX_BYTES: Final = 1 * MIB  # of an unwanted answer's body read before the connection is closed instead
RESPONSE_BODY_MAX_BYTES: Final = 64 * MIB  # of `Client.request`, which holds it in memory; `get` has no limit
SERVER_MESSAGE_MAX_CHARS: Final = 500  # of a server's own words shown in an error

# --- asking first ---------------------------------------------------------------------------------------------------
EXPECT_THRESHOLD_BYTES: Final = 64 * KIB  # "auto" asks from here: below it the body fits the first congestion windows
CONTINUE_TIMEOUT_S: Final = 1.0  # for an origin nothing is known of; curl's and Go's default too
CONTINUE_TIMEOUT_ROUND_TRIPS: Final = 4  # …or this many connect round trips, whichever is more
QUIET_S: Final = 0.001  # silence after a 100 before the body: nginx sends the 307 at most 0.3 ms behind it
QUIET_MAX_S: Final = 0.02  # …and longer for longer bodies: on a busy server the 307 may be a time slice behind
QUIET_PER_GIB_S: Final = 0.02  # at most 2 % of what the body takes at 1 GiB/s
QUIET_THRESHOLD_BYTES: Final = 1 * MIB  # …for bodies of this size and more; below, 1 ms costs more than it saves

# --- time -----------------------------------------------------------------------------------------------------------
CONNECT_TIMEOUT_S: Final = 5.0  # a SYN is sent again after 1 and 3 s; boto3 waits 60, which hides a dead address
STALL_TIMEOUT_S: Final = 60.0  # no byte accepted by the kernel; boto3's read timeout is the same
RESPONSE_TIMEOUT_S: Final = 60.0  # S3 may take tens of seconds to commit a large object
MAX_IDLE_S: Final = 4.0  # S3 drops idle connections after about 5 s
CLOSE_GRACE_S: Final = 1.0  # for the transports of a closing client to say goodbye

# --- connections ----------------------------------------------------------------------------------------------------
CONNECTIONS_MAX: Final = 64  # of one client; the sender has as many threads at most
SOURCES_PER_CONNECTION_MAX: Final = 2  # open: one is sent, one waits or is hashed; often 1024 descriptors are all
NOTSENT_LOWAT_BYTES: Final = 256 * KIB  # unsent bytes in the socket: bounds what is wasted on an abort (Linux ≥ 4.6)
RECEIVE_BUFFER_BYTES: Final = 256 * KIB  # one per loop, shared: it is parsed before the next read
TLS_RECEIVE_BYTES: Final = 64 * KIB  # one receive of a handshake: a server's whole flight is below 8 KiB
HAPPY_EYEBALLS_DELAY_S: Final = 0.25  # RFC 8305 section 8

# --- sending --------------------------------------------------------------------------------------------------------
INLINE_BODY_MAX_BYTES: Final = 1 * MIB  # sent on the loop: 97 µs for 256 KiB, a hand-over to a thread costs 131 µs
HELD_BACK_BYTES: Final = 64 * KIB  # of a large file, at least: sent last, once the file is known to be unchanged
TLS_RECORD_BYTES: Final = 16 * KIB  # of plaintext, in a whole one (RFC 8446 section 5.1)
TLS_BATCH_BYTES: Final = 256 * KIB  # of a body encrypted before one send: 16 whole records (RFC 8446 section 5.1)
COALESCE_MAX_BYTES: Final = 64 * KIB  # head and body leave in one segment when nothing is awaited
HASH_PIECE_BYTES: Final = 1 * MIB  # of memory hashed between two looks at whether it is still wanted
FILE_OBJECT_CHUNK_BYTES: Final = 1 * MIB  # read() of a file object without a descriptor

# --- redirects and retries ------------------------------------------------------------------------------------------
REDIRECT_MAX_HOPS: Final = 5  # S3 needs 1, AIStore 1, XRootD 2 (manager, then server); curl allows 50
RETRY_MAX_ATTEMPTS: Final = 3  # botocore's standard mode
RETRY_BASE_S: Final = 0.1  # AWS SDK for Java 2 has the same; full jitter makes 50 ms of it on average
RETRY_CAP_S: Final = 20.0  # botocore's
RETRY_AFTER_MAX_S: Final = 60.0  # a server that asks for more gets an error instead of a sleeping client

# --- S3 -------------------------------------------------------------------------------------------------------------
KEY_MAX_BYTES: Final = 1024  # UTF-8; "Creating object key names" in the S3 user guide
METADATA_MAX_BYTES: Final = 2048  # names and values together; "Working with object metadata"
XML_MAX_BYTES: Final = ERROR_BODY_MAX_BYTES
XML_MAX_DEPTH: Final = 16  # S3's error documents are two levels deep
PARTS_MAX: Final = 10_000  # of an upload; "Amazon S3 multipart upload limits" in the user guide, as the next two
PART_MAX_BYTES: Final = 5 * 1024 * MIB  # 10,000 of them are 48.8 TiB, which is S3's largest object
PART_BYTES: Final = 8 * MIB  # the smallest part made unasked: S3 takes 5 MiB, the SDKs have 8
PART_STEP_BYTES: Final = MIB  # larger parts are whole multiples
UPLOAD_THRESHOLD_BYTES: Final = 2 * PART_BYTES  # up to here one PUT: creating and completing cost more than they save
GATHER_BYTES: Final = 48 * MIB  # of a stream held in memory, unless a part or `concurrency` asks for more
CONCURRENCY_MAX: Final = 64  # S3 gives one connection some 90 MB/s: about 45 Gbit/s
PARTS_PAGE_MAX_BYTES: Final = 2 * MIB  # ListParts: 1000 parts to a page, below 1 KiB each
UPLOAD_HOPS_MAX: Final = 256  # of an upload's hops kept for its result
ABORT_TIMEOUT_S: Final = 15.0  # for removing the parts of an upload that failed, retries included
ABORTS_MAX: Final = 3  # S3 asks to abort again when parts were under way; with a look at what is left behind each
RESUME_SAVE_S: Final = 1.0  # between two writes of a resume file; parts stored since are recognised by their ETag
CREDENTIALS_EARLY_S: Final = 300.0  # refresh this long before they expire; botocore's mandatory window is 10 min
