import sys, time, json, math, numpy as np, torch as th
th.set_num_threads(1)
from benchmarks.models import make_task, run_episodes
import sb3_pmpo.off_policy as op
from sb3_pmpo import PMPO
from sb3_pmpo.core.preference import Candidates
from functools import partial
task, M, seed, args, NCR, KMAX = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
op.BOOTSTRAP_SAMPLES=1
class P(PMPO):
    def _mature(self): return [i for i in range(NCR) if i!=self.policy._young]
    def _score(self, observations, n_samples):
        reference = self.reference_actor.distribution(observations)
        actions, counts = reference.propose(n_samples)
        e=self.critic_target.ensemble
        if not hasattr(self.policy,"_view") :
            self.policy._view=None
        q=self.critic_target.q_values(observations, actions, self._critic_dtype)[self._mature()] if NCR>1 else self.critic_target.q_values(observations, actions, self._critic_dtype)
        return reference, Candidates(q.mean(0), actions, tie_break=reference.overshoot(actions), value=partial(self._value, observations), counts=counts)
    def _update_lagged_networks(self):
        super()._update_lagged_networks()
        if M and self._n_updates%M==0: self._roll()
    @th.no_grad()
    def _roll(self):
        i=(self.policy._young+1)%NCR; self.policy._young=i   # the oldest mature one
        e,t=self.critic.ensemble,self.critic_target.ensemble
        st=self.critic.optimizer.state
        for l,lt in zip([*e.hidden,e.output],[*t.hidden,t.output]):
            b=1/math.sqrt(l.weight.shape[1]); out=l is e.output
            for p,pt in ((l.weight,lt.weight),(l.bias,lt.bias)):
                p[i].uniform_(-b,b)
                if out: p[i].mul_(0.01)
                pt[i].copy_(p[i])
                st[p]["exp_avg"][i]=0; st[p]["exp_avg_sq"][i]=0
env=make_task(task,2); ev=make_task(task,2)
pk=args.pop("policy_kwargs",{}); pk["n_critics"]=NCR
m=P("MlpPolicy",env,seed=seed,device="cpu",learning_starts=1000,buffer_size=60000,policy_kwargs=pk,**args)
m.policy._young=NCR-1 if M else None
t=time.time(); spent=0
for k in range(KMAX):
    s=time.time(); m.learn(2500,reset_num_timesteps=k==0,log_interval=None); spent+=time.time()-s
    mm={n:float(v)/m._metrics._counts[n] for n,v in m._metrics._sums.items() if n in("q_value","q_gap","std_mean","action_saturation")}; m._metrics.pop()
    r=run_episodes(m,ev,range(900,905)); print(task,(k+1)*5000,round(np.mean(r),1),round(spent), {a:round(x,2) for a,x in mm.items()},flush=True)
