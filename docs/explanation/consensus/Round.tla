-------------------------------- MODULE Round -------------------------------
(***************************************************************************)
(* The rounds of a decision: tally.py, round.py and refinement.py of       *)
(* services/tocsin/consensus, their safety.                                *)
(*                                                                         *)
(* A slot is one step here: it commits at most one outcome of its round    *)
(* (that is Slot.tla), and only one that is admissible to an honest        *)
(* instance on what it knows at that moment.                               *)
(*                                                                         *)
(* The adversary is as strong as it can be made:                           *)
(*   - A hostile participant has cast a ballot for every option.           *)
(*   - An instance may know any part of what was cast, none included: that *)
(*     it holds no BallotCert forbids nothing.                             *)
(*   - Timers have run out whenever that helps.                            *)
(*   - Whoever proposes another round chooses the ballots that it is       *)
(*     computed from, n - f or more of those that were cast, and breaks    *)
(*     ties; or it has fewer, and the options stay.                        *)
(*   - Honest participants choose anything, in any round that is open.     *)
(*                                                                         *)
(* Refinement is the part of it that can do harm: of more than two         *)
(* options one with least support goes out. That several go at once, that  *)
(* one which commands nothing stays, and counter-proposals are left out.   *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, TLC

CONSTANTS
    Honest,        \* the honest participants
    Hostile,       \* the others
    Options,       \* v_1
    MaxRound,      \* rounds 1 .. MaxRound
    Q,             \* the quorum of ballots
    SingleBallot,  \* FALSE: a mutant whose honest participants ballot as often as they like
    OnlyWithCert,  \* FALSE: a mutant that decides without a BallotCert
    Recomputed,    \* FALSE: a mutant whose instances believe the options of a NEXT
    OnlyByCommit   \* FALSE: a mutant that begins another round by its timer alone

Agents == Honest \cup Hostile
Rounds == 1 .. MaxRound
Enough == Cardinality(Honest)    \* n - f

VARIABLES
    open,      \* rounds 1 .. open have begun
    asked,     \* asked[r]: v_r
    ballots,   \* ballots[r][a]: what an honest a has cast in r
    outcome,   \* outcome[r]: <<>>, <<"decide", x>>, <<"next">> or <<"close">>
    unanimous  \* unanimous[r]: what all honest ones had cast a ballot for when NEXT was committed

vars == <<open, asked, ballots, outcome, unanimous>>

Cast(r, a) == IF a \in Hostile THEN asked[r] ELSE ballots[r][a]
HasCert(r, x) == Cardinality({a \in Agents : x \in Cast(r, a)}) >= Q

Init ==
    /\ open = 1
    /\ asked = [r \in Rounds |-> IF r = 1 THEN Options ELSE {}]
    /\ ballots = [r \in Rounds |-> [a \in Honest |-> {}]]
    /\ outcome = [r \in Rounds |-> <<>>]
    /\ unanimous = [r \in Rounds |-> {}]

Ballot(a, r) ==
    /\ SingleBallot => ballots[r][a] = {}
    /\ \E x \in asked[r] \ ballots[r][a] : ballots' = [ballots EXCEPT ![r][a] = @ \cup {x}]
    /\ UNCHANGED <<open, asked, outcome, unanimous>>

Decide(r) ==
    /\ outcome[r] = <<>>
    /\ \E x \in asked[r] :
        /\ OnlyWithCert => HasCert(r, x)
        /\ outcome' = [outcome EXCEPT ![r] = <<"decide", x>>]
    /\ UNCHANGED <<open, asked, ballots, unanimous>>

Support(counted, x) == Cardinality({a \in DOMAIN counted : counted[a] = x})

\* What v_{r+1} can be: v_r, or without an option that has least support among some ballots of n - f participants or more.
Refinements(r) ==
    LET counts == UNION {{c \in [some -> asked[r]] : \A a \in some : c[a] \in Cast(r, a)} :
                         some \in {s \in SUBSET Agents : Cardinality(s) >= Enough}}
        least == {x \in asked[r] : \E c \in counts : \A y \in asked[r] : Support(c, x) <= Support(c, y)}
    IN  {asked[r]} \cup (IF Cardinality(asked[r]) > 2 THEN {asked[r] \ {x} : x \in least} ELSE {})

Next(r) ==
    /\ r < MaxRound
    /\ r = open
    /\ outcome[r] = <<>>
    /\ \E following \in IF Recomputed THEN Refinements(r) ELSE SUBSET asked[r] \ {{}} :
        asked' = [asked EXCEPT ![r + 1] = following]
    /\ outcome' = [outcome EXCEPT ![r] = <<"next">>]
    /\ unanimous' = [unanimous EXCEPT ![r] = {x \in asked[r] : \A a \in Honest : x \in ballots[r][a]}]
    /\ open' = r + 1
    /\ UNCHANGED ballots

\* The mutant: another round begins, and whatever this one commits counts as well.
Timer(r) ==
    /\ ~OnlyByCommit
    /\ r < MaxRound
    /\ r = open
    /\ asked' = [asked EXCEPT ![r + 1] = asked[r]]
    /\ open' = r + 1
    /\ UNCHANGED <<ballots, outcome, unanimous>>

Close(r) ==
    /\ r = MaxRound
    /\ outcome[r] = <<>>
    /\ outcome' = [outcome EXCEPT ![r] = <<"close">>]
    /\ UNCHANGED <<open, asked, ballots, unanimous>>

Step ==
    \E r \in 1 .. open :
        \/ \E a \in Honest : Ballot(a, r)
        \/ Decide(r) \/ Next(r) \/ Timer(r) \/ Close(r)

Spec == Init /\ [][Step]_vars
Symmetry == Permutations(Honest) \cup Permutations(Options)

Decided == {r \in Rounds : outcome[r] # <<>> /\ outcome[r][1] = "decide"}

\* No two choices of a round have a quorum, whatever comes in after the round is over.
OneCert == \A r \in Rounds : Cardinality({x \in asked[r] : HasCert(r, x)}) <= 1
\* A decision is decided in one round, and nothing comes after it.
Agreement == Cardinality(Decided) <= 1 /\ \A r \in Decided : r = open
\* What was decided has a quorum of ballots.
Validity == \A r \in Decided : HasCert(r, outcome[r][2])
\* Nobody refines away what all honest ones want.
Kept == \A r \in Rounds : outcome[r] = <<"next">> => unanimous[r] \subseteq asked[r + 1]

\* What must be reachable, or the rest holds for nothing: a decision of a later round.
NothingDecidedLater == \A r \in Decided : r = 1
=============================================================================
