-------------------------------- MODULE Slot --------------------------------
(***************************************************************************)
(* The slot of a round: services/tocsin/consensus/slot.py, its safety.     *)
(*                                                                         *)
(* The adversary is as strong as it can be made:                           *)
(*   - A hostile instance has cast every vote that helps, in every view:   *)
(*     it counts towards every QC1 and every commit.                       *)
(*   - Whoever leads a view is the adversary's: every instance may be      *)
(*     shown every value there, with every certificate that exists, or     *)
(*     none. Honest leaders do less.                                       *)
(*   - There is no network: what was cast can be seen by anyone at any     *)
(*     time, or never. Loss, delay and order are choices of who acts when. *)
(*   - An instance may enter any later view at any time. TIMEOUTs only     *)
(*     restrict that.                                                      *)
(*   - Every value is admissible to everyone.                              *)
(* What is safe here is safe with less.                                    *)
(*                                                                         *)
(* A crash is a pause: what was cast is on the disk before it is seen.     *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, TLC

CONSTANTS
    Honest,      \* the honest instances
    Hostile,     \* the others
    Values,      \* outcomes: DECIDE(x), CLOSE
    MaxView,     \* views 1 .. MaxView
    Q,           \* the quorum, 2m \div 3 + 1
    UseLock,     \* FALSE: a mutant without the lock
    SingleVote   \* FALSE: a mutant that casts VOTE1 as often as it likes

Views == 1 .. MaxView

VARIABLES
    view,        \* view[i]: the view that i is in
    vote1,       \* vote1[i][w]: the values that i cast VOTE1 for in view w
    basis,       \* basis[i][w]: the view of the QC1 that i's VOTE1 in w names, 0 for none
    vote2        \* vote2[i][w]: the values that i cast VOTE2 for in view w

vars == <<view, vote1, basis, vote2>>

Certified(w, x) == Cardinality({i \in Honest : x \in vote1[i][w]}) + Cardinality(Hostile) >= Q
Committed(w, x) == Cardinality({i \in Honest : x \in vote2[i][w]}) + Cardinality(Hostile) >= Q

LockView(i) ==
    LET locked == {w \in Views : vote2[i][w] # {}}
    IN  IF locked = {} THEN 0 ELSE CHOOSE w \in locked : \A v \in locked : v <= w

\* The QC1 that a VOTE1 of i for x in its current view can rest on; 0: on none, which takes an instance without a lock.
\* Being locked on x itself is the case b = LockView(i).
Bases(i, x) ==
    LET lock == LockView(i)
        certs == {b \in 1 .. view[i] - 1 : Certified(b, x)}
    IN  IF lock = 0 \/ ~UseLock THEN certs \cup {0}
        ELSE {b \in certs : b >= lock}

Init ==
    /\ view = [i \in Honest |-> 1]
    /\ vote1 = [i \in Honest |-> [w \in Views |-> {}]]
    /\ basis = [i \in Honest |-> [w \in Views |-> 0]]
    /\ vote2 = [i \in Honest |-> [w \in Views |-> {}]]

Enter(i) ==
    /\ \E w \in view[i] + 1 .. MaxView : view' = [view EXCEPT ![i] = w]
    /\ UNCHANGED <<vote1, basis, vote2>>

Vote1(i) ==
    /\ SingleVote => vote1[i][view[i]] = {}
    /\ LockView(i) < view[i]
    /\ \E x \in Values \ vote1[i][view[i]] : \E b \in Bases(i, x) :
        /\ vote1' = [vote1 EXCEPT ![i][view[i]] = @ \cup {x}]
        /\ basis' = [basis EXCEPT ![i][view[i]] = b]
    /\ UNCHANGED <<view, vote2>>

Vote2(i) ==
    /\ vote2[i][view[i]] = {}
    /\ \E x \in Values :
        /\ Certified(view[i], x)
        /\ vote2' = [vote2 EXCEPT ![i][view[i]] = {x}]
    /\ UNCHANGED <<view, vote1, basis>>

Next == \E i \in Honest : Enter(i) \/ Vote1(i) \/ Vote2(i)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------

\* No two values are committed, in whatever views.
Agreement == \A w, v \in Views : \A x, y \in Values : (Committed(w, x) /\ Committed(v, y)) => x = y

\* What an honest instance casts is never a proof against it (evidence/misbehaviour.py).
NobodyFramed ==
    \A i \in Honest :
        /\ \A w \in Views : Cardinality(vote1[i][w]) <= 1 /\ Cardinality(vote2[i][w]) <= 1
        /\ \A w, v \in Views :
            (w < v /\ vote2[i][w] # {} /\ vote1[i][v] # {} /\ vote1[i][v] # vote2[i][w]) => basis[i][v] >= w

\* That the model can do something: broken on purpose by Reachable.cfg.
NothingCommitted == \A w \in Views : \A x \in Values : ~Committed(w, x)

Symmetry == Permutations(Honest) \cup Permutations(Values)
=============================================================================
