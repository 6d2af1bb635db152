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
            if "lin" in flags: loss = loss + flags["lin"]*(self.actor.head.pre.abs()-1).clamp(min=0).square().sum(-1).mean()
            if "pre" in flags: loss = loss + flags["pre"]*self.actor.head.pre.square().mean()
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
                    if flags.get("per"): rms = gs.square().mean(-1,keepdim=True).sqrt()+1e-8
                    d = (c*gs/rms).clamp(-flags.get("clip",2.0),flags.get("clip",2.0))*ref.std
                    acts = th.cat([a+d, a-d]); 
                    acc = th.zeros(2*S, a.shape[1]); acc[:S]=1/S
                    pref = Preference(acc, acc.flip(0))
                import dataclasses
                from sb3_pmpo.objectives import PMPOObjective
                obj = PMPOObjective(.5, self.beta[0], self.beta[1], lambda c: pref, True)
                sc = th.cat([q.detach()+ (g*d).sum(-1), q.detach()-(g*d).sum(-1)])
                loss, terms = obj(self.actor.distribution(observations), ref, Candidates(sc, acts))
                if "lin" in flags: loss = loss + flags["lin"]*(self.actor.head.pre.abs()-1).clamp(min=0).square().sum(-1).mean()
                self.actor.optimizer.zero_grad(); loss.backward(); n=grad_norm(self.actor.optimizer); self.actor.optimizer.step()
                return {**terms, "actor_grad_norm": n, "std_mean": ref.std.mean()}
        return G
    return T

import sb3_pmpo.actor_critic as ac, sb3_pmpo.networks as nw
from torch import nn
_fw = nw.GaussianHead.forward
def fw(self, latent):
    mean, spread = self.linear(latent).chunk(2, dim=-1)
    self.pre = mean
    std = self.std_min + (self.std_max - self.std_min) * th.sigmoid(spread + self.offset)
    return nw.DiagGaussian(th.tanh(mean), std)
nw.GaussianHead.forward = fw
_mlp = ac.create_mlp
__make = make
def make(flags):
    if flags.get("aln"):
        def mlp(*a, **k):
            out=[]
            for m in _mlp(*a, **k):
                out.append(m)
                if isinstance(m, nn.Linear): out.append(nn.LayerNorm(m.out_features))
            return out
        ac.create_mlp = mlp
    return __make(flags)

def fw2(self, latent):
    mean, spread = self.linear(latent).chunk(2, dim=-1)
    self.pre = mean
    std = self.std_min + (self.std_max - self.std_min) * th.sigmoid(spread + self.offset)
    return nw.DiagGaussian(mean, std)
___make = make
import sb3_pmpo.pmpo as pm
def make(flags):
    if "lin" in flags: nw.GaussianHead.forward = fw2
    T = ___make(flags)
    if ("lin" in flags or "pre" in flags) and "pathwise" not in flags and "guided" not in flags:
        class L(T):
            def _policy_step(self, observations):
                obj = self.objective; actor=self.actor
                def o2(*a):
                    loss, terms = obj(*a)
                    pre = actor.head.pre
                    pen = flags["lin"]*(pre.abs()-1).clamp(min=0).square().sum(-1).mean() if "lin" in flags else flags["pre"]*pre.square().sum(-1).mean()
                    return type("X",(),{"__iter__":lambda s: iter((loss+pen, terms))})()
                class O:
                    duals=None
                    def __call__(s,*a): return o2(*a)
                self.objective = O()
                try: return super()._policy_step(observations)
                finally: self.objective = obj
        return L
    return T

____make = make
import numpy as np
def make(flags):
    T = ____make(flags)
    if "sq" in flags:
        nw.GaussianHead.forward = fw2
        def forward(self, observations, deterministic=False):
            d = self.distribution(observations)
            return th.tanh(d.mode() if deterministic else d.sample(1)[0])
        ac.Actor.forward = forward
        class Q(T):
            @th.no_grad()
            def _score(self, observations, n_samples):
                reference = self.reference_actor.distribution(observations)
                actions, counts = reference.propose(n_samples)
                q = self.critic_target.q_values(observations, th.tanh(actions), self._critic_dtype)
                return reference, Candidates(q.mean(0), actions, tie_break=actions.abs().sum(-1), value=None, counts=counts)
            def _draw_correlated(self, source, action_noise):
                observations, _ = self.policy.obs_to_tensor(self._last_obs)
                with th.no_grad():
                    noise = th.as_tensor(source(), device=self.device)
                    actions = th.tanh(self.actor.distribution(observations).at_quantile(noise))
                    scaled = actions.cpu().numpy().reshape(-1, *self.action_space.shape)
                scaled = np.clip(scaled, -1.0, 1.0).astype(np.float32)
                return self.policy.unscale_action(scaled), scaled
            def _policy_step(self, observations):
                if not flags["sq"]: return super()._policy_step(observations)
                obj = self.objective; actor=self.actor
                class O:
                    duals=None
                    def __call__(s,*a):
                        loss, terms = obj(*a)
                        pen = flags["sq"]*actor.head.pre.square().sum(-1).mean()
                        return type("X",(),{"__iter__":lambda s: iter((loss+pen, terms))})()
                self.objective = O()
                try: return super()._policy_step(observations)
                finally: self.objective = obj
        return Q
    return T

class _Inv(th.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x); return x.clone()
    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors   # descent moves x by -g: up where g<0
        room = th.where(g < 0, 1.0 - x, 1.0 + x)
        return g * room.clamp(-1, 1)
def fw3(self, latent):
    mean, spread = self.linear(latent).chunk(2, dim=-1)
    self.pre = mean
    std = self.std_min + (self.std_max - self.std_min) * th.sigmoid(spread + self.offset)
    return nw.DiagGaussian(_Inv.apply(mean), std)
_____make = make
def make(flags):
    if flags.get("ig"):
        nw.GaussianHead.forward = fw3
        return _____make({k:v for k,v in flags.items() if k!="ig"})
    return _____make(flags)

______make = make
def make(flags):
    sp = flags.get("sp")
    T = ______make({k:v for k,v in flags.items() if k not in ("sp","shrink","hold")})
    if sp:
        shrink = flags.get("shrink",.3); hold = flags.get("hold",500)
        class SP(T):
            def _update_lagged_networks(self):
                n = self._n_updates
                if n and n % sp == 0:
                    self._held = n
                    with th.no_grad():
                        for layer in [*self.critic.ensemble.hidden, self.critic.ensemble.output]:
                            b = 1/math.sqrt(layer.weight.shape[1])
                            if layer is self.critic.ensemble.output: b*=.01
                            for p in (layer.weight, layer.bias): p.mul_(shrink).add_((1-shrink)*th.empty_like(p).uniform_(-b,b))
                        self.critic.optimizer.state.clear()
                tau = self.tau
                if n - getattr(self,"_held",-10**9) < hold: self.tau = 0.0
                super()._update_lagged_networks()
                self.tau = tau
        return SP
    return T

_______make = make
def make(flags):
    bar = flags.get("bar")
    T = _______make({k:v for k,v in flags.items() if k!="bar"})
    if bar:
        class B(T):
            def _policy_step(self, observations):
                obj = self.objective
                class O:
                    duals=None
                    def __call__(s, online, ref, c):
                        loss, terms = obj(online, ref, c)
                        pen = -bar*(1-online.mean.square()+1e-6).log().sum(-1).mean()
                        return loss+pen, terms
                self.objective = O()
                try: return super()._policy_step(observations)
                finally: self.objective = obj
        return B
    return T
