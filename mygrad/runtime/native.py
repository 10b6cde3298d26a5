"""The native program that runs launch sequences: LLVM text, compiled once.

    void mygrad_run(ctx, plan, slots, nthreads)     run a plan on this thread and the pool
    i64  mygrad_start(ctx, nthreads)                create the threads 1 .. nthreads - 1; the count
    void mygrad_stop(ctx, nthreads)                 end them
    void mygrad_rounds(args, tid, nthreads)         a step that runs others block by block

    Plan = { steps, nsteps, table, nargs, args }             40 bytes
    Step = { function, its part of args, flags }             24 bytes
    flags: 1 parallel, 2 barrier before; from bit 8 on the thread that a serial step is for
    table: for each of nargs arguments (slot, offset): args[i] = slots[slot] + offset

Rounds are a parallel step whose first argument is the address of

    { shares, blocks of a share, blocks of a unit, local bytes of a thread, parts, most arguments,
      a part: (function, first block, end, arguments), ...        4 words each
      kinds of all arguments, ... }

and whose others are the arguments of the parts. What a kind adds to an argument: 0 nothing, 1 the
start of this thread's memory, 2 the number of the unit, 3 that of the block.

A parallel step runs on all threads, a serial one on its own (modulo their number); thread 0 is the
caller. Threads that wait spin for about 100 microseconds, then sleep on a condition variable, so
that a busy machine costs time but never stands still: whoever changes a word that others wait for
looks at the number of sleepers after the change, and whoever goes to sleep looks at the word after
announcing itself. They do not yield: on a busy machine that gives away a whole slice of time, where
a sleeper is woken at once. `slept` counts the waits at barriers that ended in sleep.

Before it wakes sleepers for a plan, the caller forbids its own processor to them: Linux likes to
wake a thread where it is woken from, and there it would wait until the caller, who waits for it at
the end of the plan, sleeps as well; then both are late the next time, and so on. The others may run
on all processors that the caller may use but this one, until a caller wakes them again. Nothing is
forbidden where there are more threads than processors, and on other systems than Linux.

`ctx` is zeroed memory, a word of it per cache line: what follows the names below.
"""

from __future__ import annotations

import platform
import re

CONTEXT_BYTES = 64 << 10
MAX_THREADS = 512
PARALLEL, BARRIER, OWNER = 1, 2, 8  # flags of steps, and the bit where the owner begins
WORDS = {
    "arrived": 8,
    "generation": 16,
    "sleepers": 24,
    "stop": 32,
    "plan": 40,
    "threads": 48,
    "slept": 56,
    "mutex": 64,
    "condition": 96,
    "workers": 128,
}  # offsets in words of 8 bytes
_SPINS = (
    4000  # about 100 us: longer spins cost more on a busy machine than they gain on an idle one
)

_PAUSE = {
    "x86_64": "call void @llvm.x86.sse2.pause()",
    "AMD64": "call void @llvm.x86.sse2.pause()",
    "aarch64": "call void @llvm.aarch64.hint(i32 1)",
    "arm64": "call void @llvm.aarch64.hint(i32 1)",
}


def source() -> str:
    """The module for this processor and system."""
    text = _SOURCE + (_PLACE if platform.system() == "Linux" else _NO_PLACE)
    text = text.replace("$PAUSE", _PAUSE.get(platform.machine(), ""))
    text = text.replace("$SPINS", str(_SPINS))
    text = _WORD.sub(_load, text)
    return re.sub(r"\$([a-z]+)", lambda m: f"getelementptr i64, ptr %ctx, i64 {WORDS[m[1]]}", text)


# %name = word TYPE %pointer, n: word number n behind a pointer
_WORD = re.compile(r"  (%[\w.]+) = word (i64|ptr) (%[\w.]+), (\d+)")


def _load(found: re.Match[str]) -> str:
    name, kind, pointer, n = found.groups()
    return (
        f"  {name}.p = getelementptr i64, ptr {pointer}, i64 {n}\n"
        f"  {name} = load {kind}, ptr {name}.p, align 8"
    )


_SOURCE = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

; wait until the word at %p is not %seen; its new value
define internal i64 @wait(ptr %ctx, ptr %p, i64 %seen) noinline nounwind {
entry:
  %sleepers = $sleepers
  %mutex = $mutex
  %condition = $condition
  %slept = $slept
  br label %spin
spin:
  %k = phi i64 [ 0, %entry ], [ %k.next, %spinning ]
  %v.spin = load atomic i64, ptr %p acquire, align 8
  %changed.spin = icmp ne i64 %v.spin, %seen
  br i1 %changed.spin, label %out, label %spinning
spinning:
  $PAUSE
  %k.next = add i64 %k, 1
  %more.spin = icmp ult i64 %k.next, $SPINS
  br i1 %more.spin, label %spin, label %sleep
sleep:
  %at.barrier = icmp ne ptr %p, %ctx
  %one = zext i1 %at.barrier to i64
  %counted = atomicrmw add ptr %slept, i64 %one monotonic
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %announced = atomicrmw add ptr %sleepers, i64 1 seq_cst
  br label %look
look:
  %v.sleep = load atomic i64, ptr %p seq_cst, align 8
  %changed.sleep = icmp ne i64 %v.sleep, %seen
  br i1 %changed.sleep, label %awake, label %sleeping
sleeping:
  %woken = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %look
awake:
  %gone = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %out
out:
  %v = phi i64 [ %v.spin, %spin ], [ %v.sleep, %awake ]
  ret i64 %v
}

; change the word at %p and wake those who sleep
define internal void @publish(ptr %ctx, ptr %p, i64 %value) noinline nounwind {
entry:
  %sleepers = $sleepers
  %mutex = $mutex
  %condition = $condition
  %old = atomicrmw xchg ptr %p, i64 %value seq_cst
  %n = load atomic i64, ptr %sleepers seq_cst, align 8
  %any = icmp ne i64 %n, 0
  br i1 %any, label %wake, label %out
wake:
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %woken = call i32 @pthread_cond_broadcast(ptr %condition)
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %out
out:
  ret void
}

define internal void @barrier(ptr %ctx, i64 %nthreads) nounwind {
entry:
  %arrived = $arrived
  %generation = $generation
  %g = load atomic i64, ptr %generation acquire, align 8
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel
  %now = add i64 %before, 1
  %last = icmp eq i64 %now, %nthreads
  br i1 %last, label %release, label %stay
release:
  store atomic i64 0, ptr %arrived monotonic, align 8
  %g.next = add i64 %g, 1
  call void @publish(ptr %ctx, ptr %generation, i64 %g.next)
  ret void
stay:
  %passed = call i64 @wait(ptr %ctx, ptr %generation, i64 %g)
  ret void
}

define internal void @steps(ptr %ctx, ptr %plan, i64 %tid, i64 %nthreads) nounwind {
entry:
  %steps = load ptr, ptr %plan, align 8
  %count = word i64 %plan, 1
  %end = getelementptr [3 x i64], ptr %steps, i64 %count
  %alone = icmp eq i64 %nthreads, 1
  br label %check
check:
  %step = phi ptr [ %steps, %entry ], [ %step.next, %next ]
  %done = icmp eq ptr %step, %end
  br i1 %done, label %out, label %one
one:
  %flags = word i64 %step, 2
  %barrier.bit = and i64 %flags, 2
  %no.barrier = icmp eq i64 %barrier.bit, 0
  %skip.barrier = or i1 %no.barrier, %alone
  br i1 %skip.barrier, label %ready, label %meet
meet:
  call void @barrier(ptr %ctx, i64 %nthreads)
  br label %ready
ready:
  %parallel.bit = and i64 %flags, 1
  %parallel = icmp ne i64 %parallel.bit, 0
  %owner = lshr i64 %flags, 8
  %turn = urem i64 %owner, %nthreads
  %own = icmp eq i64 %turn, %tid
  %mine = or i1 %parallel, %own
  br i1 %mine, label %work, label %next
work:
  %function = load ptr, ptr %step, align 8
  %args = word ptr %step, 1
  %n = select i1 %parallel, i64 %nthreads, i64 1
  call void %function(ptr %args, i64 %tid, i64 %n)
  br label %next
next:
  %step.next = getelementptr [3 x i64], ptr %step, i64 1
  br label %check
out:
  ret void
}

define internal ptr @worker(ptr %own) nounwind {
entry:
  %ctx = load ptr, ptr %own, align 8
  %tid = word i64 %own, 1
  %stop.p = $stop
  %plan.p = $plan
  %threads.p = $threads
  br label %idle
idle:
  %seen = phi i64 [ 0, %entry ], [ %job, %run ]
  %job = call i64 @wait(ptr %ctx, ptr %ctx, i64 %seen)
  %stop = load atomic i64, ptr %stop.p acquire, align 8
  %stopped = icmp ne i64 %stop, 0
  br i1 %stopped, label %out, label %run
run:
  %plan = load ptr, ptr %plan.p, align 8
  %threads = load i64, ptr %threads.p, align 8
  call void @steps(ptr %ctx, ptr %plan, i64 %tid, i64 %threads)
  call void @barrier(ptr %ctx, i64 %threads)
  br label %idle
out:
  ret ptr null
}

define void @mygrad_rounds(ptr %args, i64 %tid, i64 %nthreads) nounwind {
entry:
  %about = load ptr, ptr %args, align 8
  %shares = load i64, ptr %about, align 8
  %inner = word i64 %about, 1
  %blocks = word i64 %about, 2
  %bytes = word i64 %about, 3
  %nparts = word i64 %about, 4
  %most = word i64 %about, 5
  %parts = getelementptr i64, ptr %about, i64 6
  %parts.end = getelementptr [4 x i64], ptr %parts, i64 %nparts
  %given = getelementptr i64, ptr %args, i64 1
  %own = alloca i64, i64 %most, align 16
  %added = alloca [4 x i64], align 16
  %added.local = getelementptr i64, ptr %added, i64 1
  %added.unit = getelementptr i64, ptr %added, i64 2
  %added.block = getelementptr i64, ptr %added, i64 3
  %local = mul i64 %bytes, %tid
  store i64 0, ptr %added, align 8
  store i64 %local, ptr %added.local, align 8
  %a = mul i64 %shares, %tid
  %b = add i64 %a, %shares
  %low.share = udiv i64 %a, %nthreads
  %high.share = udiv i64 %b, %nthreads
  %low = mul i64 %low.share, %inner
  %high = mul i64 %high.share, %inner
  br label %check
check:
  %n = phi i64 [ %low, %entry ], [ %n.next, %round.done ]
  %more = icmp ult i64 %n, %high
  br i1 %more, label %round, label %out
round:
  %unit = udiv i64 %n, %blocks
  %block = urem i64 %n, %blocks
  store i64 %unit, ptr %added.unit, align 8
  store i64 %block, ptr %added.block, align 8
  br label %part.check
part.check:
  %part = phi ptr [ %parts, %round ], [ %part.next, %part.done ]
  %at = phi i64 [ 0, %round ], [ %at.next, %part.done ]
  %parts.done = icmp eq ptr %part, %parts.end
  br i1 %parts.done, label %round.done, label %one
one:
  %first = word i64 %part, 1
  %end = word i64 %part, 2
  %count = word i64 %part, 3
  %at.next = add i64 %at, %count
  %begun = icmp uge i64 %block, %first
  %not.over = icmp ult i64 %block, %end
  %due = and i1 %begun, %not.over
  br i1 %due, label %fill, label %part.done
fill:
  %i = phi i64 [ 0, %one ], [ %i.next, %filling ]
  %filled = icmp eq i64 %i, %count
  br i1 %filled, label %call, label %filling
filling:
  %j = add i64 %at, %i
  %kind.p = getelementptr i64, ptr %parts.end, i64 %j
  %kind = load i64, ptr %kind.p, align 8
  %add.p = getelementptr i64, ptr %added, i64 %kind
  %add = load i64, ptr %add.p, align 8
  %given.p = getelementptr i64, ptr %given, i64 %j
  %base = load i64, ptr %given.p, align 8
  %value = add i64 %base, %add
  %own.p = getelementptr i64, ptr %own, i64 %i
  store i64 %value, ptr %own.p, align 8
  %i.next = add i64 %i, 1
  br label %fill
call:
  %function = load ptr, ptr %part, align 8
  call void %function(ptr %own, i64 0, i64 1)
  br label %part.done
part.done:
  %part.next = getelementptr [4 x i64], ptr %part, i64 1
  br label %part.check
round.done:
  %n.next = add i64 %n, 1
  br label %check
out:
  ret void
}

define void @mygrad_run(ptr %ctx, ptr %plan, ptr %slots, i64 %nthreads) nounwind {
entry:
  %table = word ptr %plan, 2
  %nargs = word i64 %plan, 3
  %args = word ptr %plan, 4
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %i.next, %resolve ]
  %more = icmp ult i64 %i, %nargs
  br i1 %more, label %resolve, label %go
resolve:
  %row = getelementptr [2 x i64], ptr %table, i64 %i
  %slot = load i64, ptr %row, align 8
  %offset = word i64 %row, 1
  %slot.p = getelementptr i64, ptr %slots, i64 %slot
  %base = load i64, ptr %slot.p, align 8
  %value = add i64 %base, %offset
  %arg.p = getelementptr i64, ptr %args, i64 %i
  store i64 %value, ptr %arg.p, align 8
  %i.next = add i64 %i, 1
  br label %check
go:
  %alone = icmp eq i64 %nthreads, 1
  br i1 %alone, label %serial, label %together
serial:
  call void @steps(ptr %ctx, ptr %plan, i64 0, i64 1)
  ret void
together:
  %plan.p = $plan
  %threads.p = $threads
  store ptr %plan, ptr %plan.p, align 8
  store i64 %nthreads, ptr %threads.p, align 8
  %sleepers = $sleepers
  %asleep = load atomic i64, ptr %sleepers monotonic, align 8
  %any = icmp ne i64 %asleep, 0
  br i1 %any, label %place, label %begin
place:
  call void @place(ptr %ctx, i64 %nthreads)
  br label %begin
begin:
  %job = load atomic i64, ptr %ctx monotonic, align 8
  %job.next = add i64 %job, 1
  call void @publish(ptr %ctx, ptr %ctx, i64 %job.next)
  call void @steps(ptr %ctx, ptr %plan, i64 0, i64 %nthreads)
  call void @barrier(ptr %ctx, i64 %nthreads)
  ret void
}

; a worker's own words: ctx, tid, pthread_t
define i64 @mygrad_start(ptr %ctx, i64 %nthreads) nounwind {
entry:
  %mutex = $mutex
  %condition = $condition
  %workers = $workers
  %attributes = alloca [256 x i8], align 16
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %c = call i32 @pthread_cond_init(ptr %condition, ptr null)
  %a = call i32 @pthread_attr_init(ptr %attributes)
  %s = call i32 @pthread_attr_setstacksize(ptr %attributes, i64 8388608)
  br label %check
check:
  %tid = phi i64 [ 1, %entry ], [ %tid.next, %create ]
  %more = icmp ult i64 %tid, %nthreads
  br i1 %more, label %create, label %out
create:
  %own = getelementptr [8 x i64], ptr %workers, i64 %tid
  %tid.p = getelementptr i64, ptr %own, i64 1
  %thread.p = getelementptr i64, ptr %own, i64 2
  store ptr %ctx, ptr %own, align 8
  store i64 %tid, ptr %tid.p, align 8
  %failed = call i32 @pthread_create(ptr %thread.p, ptr %attributes, ptr @worker, ptr %own)
  %ok = icmp eq i32 %failed, 0
  %tid.next = add i64 %tid, 1
  br i1 %ok, label %check, label %out
out:
  ret i64 %tid
}

define void @mygrad_stop(ptr %ctx, i64 %nthreads) nounwind {
entry:
  %stop.p = $stop
  %workers = $workers
  store atomic i64 1, ptr %stop.p seq_cst, align 8
  %job = load atomic i64, ptr %ctx monotonic, align 8
  %job.next = add i64 %job, 1
  call void @publish(ptr %ctx, ptr %ctx, i64 %job.next)
  br label %check
check:
  %tid = phi i64 [ 1, %entry ], [ %tid.next, %join ]
  %more = icmp ult i64 %tid, %nthreads
  br i1 %more, label %join, label %out
join:
  %own = getelementptr [8 x i64], ptr %workers, i64 %tid
  %thread = word i64 %own, 2
  %joined = call i32 @pthread_join(i64 %thread, ptr null)
  %tid.next = add i64 %tid, 1
  br label %check
out:
  ret void
}
"""

_NO_PLACE = """
define internal void @place(ptr %ctx, i64 %nthreads) nounwind {
  ret void
}
"""

# masks are of 1024 processors; where there are more, the system says no and threads stay free
_PLACE = """
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @pthread_setaffinity_np(i64, i64, ptr)

; let the threads 1 .. nthreads - 1 run wherever this one may, but not where it is now; where there
; are more threads than processors, some must share its own
define internal void @place(ptr %ctx, i64 %nthreads) noinline nounwind {
entry:
  %workers = $workers
  %mask = alloca [16 x i64], align 8
  %failed = call i32 @sched_getaffinity(i32 0, i64 128, ptr %mask)
  %cpu = call i32 @sched_getcpu()
  %unknown = icmp uge i32 %cpu, 1024
  %failed.bit = icmp ne i32 %failed, 0
  %no = or i1 %unknown, %failed.bit
  br i1 %no, label %out, label %count
count:
  %all = load <16 x i64>, ptr %mask, align 8
  %bits = call <16 x i64> @llvm.ctpop.v16i64(<16 x i64> %all)
  %allowed = call i64 @llvm.vector.reduce.add.v16i64(<16 x i64> %bits)
  %enough = icmp uge i64 %allowed, %nthreads
  br i1 %enough, label %clear, label %out
clear:
  %n = zext i32 %cpu to i64
  %word = lshr i64 %n, 6
  %bit = and i64 %n, 63
  %one = shl i64 1, %bit
  %others = xor i64 %one, -1
  %own.p = getelementptr i64, ptr %mask, i64 %word
  %own = load i64, ptr %own.p, align 8
  %own.new = and i64 %own, %others
  store i64 %own.new, ptr %own.p, align 8
  br label %check
check:
  %tid = phi i64 [ 1, %clear ], [ %tid.next, %set ]
  %more = icmp ult i64 %tid, %nthreads
  br i1 %more, label %set, label %out
set:
  %worker = getelementptr [8 x i64], ptr %workers, i64 %tid
  %thread = word i64 %worker, 2
  %ignored = call i32 @pthread_setaffinity_np(i64 %thread, i64 128, ptr %mask)
  %tid.next = add i64 %tid, 1
  br label %check
out:
  ret void
}
"""
