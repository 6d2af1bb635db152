import torch as th, math
from functools import partial
from sb3_pmpo import PMPO
from sb3_pmpo.metrics import grad_norm
from sb3_pmpo.core.preference import Preference, Candidates
def make(flags):
    if not flags: return PMPO
    class T(PMPO):
        pass
    if "label" in flags:
        kind = flags["label"]
        def lab(c, state={}):
            q = c.scores; S=len(q)
            A = q - q.mean(0)
            rms = A.square().mean().sqrt() + 1e-8
            if kind == "adv":
                w = (A/rms/S*flags.get("gain",1.0)).clamp(-3,3)
                return Preference(2*w.clamp(min=0), 2*(-w).clamp(min=0))
            if kind == "gquant":   # accept above +c rms, reject below -c rms, global
                c_ = flags.get("c",0.5)
                return Preference((A>c_*rms).float()/S*2, (A<-c_*rms).float()/S*2)
        old = T._make_objective
        import dataclasses
        def _make_objective(self): return dataclasses.replace(old(self), labeller=lab)
        T._make_objective = _make_objective
    if flags.get("online"):
        @th.no_grad()
        def _score(self, observations, n_samples):
            reference = self.reference_actor.distribution(observations)
            actions, counts = reference.propose(n_samples)
            critic = self.critic if n_samples==self.n_samples else self.critic_target
            q = critic.q_values(observations, actions, self._critic_dtype)
            return reference, Candidates(q.mean(0), actions, tie_break=reference.overshoot(actions), value=None, counts=counts)
        T._score = _score
    if "pathwise" in flags:
        sig = flags["pathwise"]
        def _policy_step(self, observations):
            if not hasattr(self, "log_a"):
                self.log_a = th.full((1,),-3.5, requires_grad=True); self.opt_a = th.optim.Adam([self.log_a], lr=1e-3)
            d = self.actor.distribution(observations)
            a = d.mean + d.std*th.randn_like(d.std)
            q = self.critic.q_values(observations, a.unsqueeze(0))
            q = (q.min(0).values if flags.get("min") else q.mean(0))[0]/self.critic.scale.detach()
            A = d.std.shape[-1]
            logstd = d.std.log().sum(-1)
            alpha = self.log_a.exp().detach()
            loss = (-q - alpha*logstd).mean()
            self.actor.optimizer.zero_grad(); loss.backward(); n=grad_norm(self.actor.optimizer); self.actor.optimizer.step()
            la = (self.log_a*(logstd.detach().mean()-A*math.log(sig)))
            self.opt_a.zero_grad(); la.sum().backward(); self.opt_a.step()
            return {"actor_loss": loss.detach(), "actor_grad_norm": n, "std": d.std.detach().mean(), "ent_coef": alpha[0]}
        T._policy_step = _policy_step
    return T
_make = make
def make(flags):
    T = _make(flags) if flags else PMPO
    if "guided" in flags:
        c = flags["guided"]; S = flags.get("S",1)
        class G(T):
            def _policy_step(self, observations):
                with th.no_grad():
                    ref = self.reference_actor.distribution(observations)
                    a = ref.sample(S)
                critic = self.critic_target if flags.get("target") else self.critic
                a.requires_grad_()
                q = critic.q_values(observations, a).mean(0)
                g, = th.autograd.grad(q.sum(), a)
                with th.no_grad():
                    a = a.detach()
                    gs = g*ref.std
                    rms = gs.square().mean().sqrt()+1e-8
                    d = (c*gs/rms).clamp(-flags.get("clip",2.0),flags.get("clip",2.0))*ref.std
                    acts = th.cat([a+d, a-d]); 
                    acc = th.zeros(2*S, a.shape[1]); acc[:S]=1/S
                    pref = Preference(acc, acc.flip(0))
                import dataclasses
                obj = dataclasses.replace(self.objective, labeller=lambda c: pref)
                sc = th.cat([q.detach()+ (g*d).sum(-1), q.detach()-(g*d).sum(-1)])
                loss, terms = obj(self.actor.distribution(observations), ref, Candidates(sc, acts))
                self.actor.optimizer.zero_grad(); loss.backward(); n=grad_norm(self.actor.optimizer); self.actor.optimizer.step()
                return {**terms, "actor_grad_norm": n, "std_mean": ref.std.mean()}
        return G
    return T
